#!/usr/bin/env bash
# What takes too long for .ci/run, or is random.  On two cores of an AMD EPYC (Zen 4): the fault tests in
# full, with random examples, 5 minutes; AddressSanitizer and UBSan 6 minutes; ThreadSanitizer half a minute.
#
#   tests/nightly.sh [faults] [asan] [tsan]         which parts; all of them without arguments
#
# Needs the package's test extra in the Python at hand, gcc, strace and qemu-user; tsan needs clang and libomp (Archer).
set -euo pipefail
cd "$(dirname "$0")/.."
parts=${*:-faults asan tsan}
step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A copy of the sources, built with $1 as the compiler and bounds checks on, without optimisation that hides a fault.
build() {
    git archive --prefix=src/ HEAD | tar -x -C "$work"
    (cd "$work/src" && CC="$1" FASTLOOP_DEBUG=1 python setup.py build_ext --inplace >"$work/build.log" 2>&1) ||
        { tail -20 "$work/build.log"; exit 1; }
}
# Tests that are slow under a sanitiser and show it nothing: they start processes, watch the clock, or count memory.
SLOW="not fork and not examples and not memory"

for part in $parts; do
    case $part in
    faults)
        step "the fault tests in full"
        FASTLOOP_NIGHTLY=1 python -m pytest tests/faults -s
        ;;
    asan)
        step "AddressSanitizer and UndefinedBehaviorSanitizer over the tests of compiled code"
        build "gcc -fsanitize=address,undefined -fno-omit-frame-pointer -g"
        (
            cd "$work/src"
            export PYTHONPATH=$PWD PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1
            sanitised() { LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" "$@"; }
            sanitised python -m pytest -p no:cacheprovider -k "$SLOW" tests/test_{kernels,numerics,optim,gpt,mlp}.py \
                tests/test_{gradients,trainer,checkpoint,data,tokenizer,lr_find,gradcheck}.py tests/faults/test_threads.py
            FASTLOOP_NIGHTLY=1 sanitised python -m pytest -p no:cacheprovider tests/faults/test_nomemory.py
        )
        rm -rf "$work/src"
        ;;
    tsan)
        step "ThreadSanitizer over the tests of threads (clang, libomp with Archer)"
        build "clang -fsanitize=thread -g"
        # A Python of its own, since ThreadSanitizer must be there from the start; -R because it wants its addresses free.
        printf '#include <Python.h>\nint main(int n, char **words) { return Py_BytesMain(n, words); }\n' >"$work/main.c"
        read -ra flags < <(python - <<'END'
import sysconfig
get = sysconfig.get_config_var
print(f"-I{get('INCLUDEPY')} -L{get('LIBDIR')} -Wl,-rpath,{get('LIBDIR')} -lpython{get('LDVERSION')}")
END
        )
        clang -fsanitize=thread -g "$work/main.c" "${flags[@]}" -o "$work/python"
        (
            cd "$work/src"
            PYTHONPATH=$PWD:$(python -c 'import sys; print(*filter(None, sys.path), sep=":")')
            # Not ignore_noninstrumented_modules, which Archer suggests: it hides what goes through memcpy, as v_load does.
            echo called_from_lib:libomp.so >"$work/suppressions"
            export PYTHONPATH OMP_WAIT_POLICY=passive
            export TSAN_OPTIONS="halt_on_error=1 report_signal_unsafe=0 suppressions=$work/suppressions"
            export OMP_TOOL_LIBRARIES=${ARCHER:-/usr/lib/llvm-14/lib/libarcher.so}
            setarch -R "$work/python" -m pytest -s -p no:cacheprovider -k "threads and not fork" \
                tests/faults/test_threads.py tests/test_{gpt,mlp,optim,trainer}.py
        )
        rm -rf "$work/src"
        ;;
    *)
        echo "nightly.sh: '$part' is not faults, asan or tsan" >&2
        exit 2
        ;;
    esac
done
step "done"
