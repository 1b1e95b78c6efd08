#!/usr/bin/env bash
# What takes too long for .ci/run.  On two cores of an AMD EPYC (Zen 4), one of them used, about an hour and a half in all:
# the fault tests in full 60 minutes, AddressSanitizer and UBSan 15, ThreadSanitizer 10.
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
# Tests that hold a sanitiser up for nothing: they start processes, watch the clock, or count memory.
SLOW='not fork and not examples and not memory and not guard and not soon'

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
            LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
                python -m pytest -p no:cacheprovider -k "$SLOW" tests/test_{kernels,numerics,optim,gpt,mlp,gradients}.py \
                tests/test_{trainer,checkpoint,data,tokenizer,lr_find,gradcheck}.py tests/faults/test_threads.py
        )
        rm -rf "$work/src"
        ;;
    tsan)
        step "ThreadSanitizer over the tests of threads (clang, libomp with Archer)"
        build "clang -fsanitize=thread -g"
        (
            cd "$work/src"
            export PYTHONPATH=$PWD TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1"
            LD_PRELOAD=$(clang -print-file-name=libclang_rt.tsan-x86_64.so) \
                OMP_TOOL_LIBRARIES=$(dirname "$(clang -print-file-name=libomp.so)")/libarcher.so \
                python -m pytest -p no:cacheprovider -k "threads and not fork" tests/faults/test_threads.py \
                tests/test_{gpt,mlp,optim,trainer}.py
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
