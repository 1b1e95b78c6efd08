/* The type of a model's values, how many of them go side by side, and the cache line that memory begins at.

   Uses nothing. */

#ifndef FL_REAL_H
#define FL_REAL_H

/* FL_PANEL: values in a vec, which are a cache line.  FL_SQUARABLE: the square of a larger value is infinite;
   FL_MODERATE: a tenth of it.  FL_LARGE: a hundredth of half a unit in the last place of the largest value, which can be
   added to any finite value (a hundredth, since the bounds that are compared with it are rounded).  FL_TINY,
   FL_TINY_ROOT, FL_TINY_BETA: see step/adam.pxi. */
#ifdef FL_FLOAT32
typedef float fl_real;
#define FL_PANEL 16
#define FL_SQUARABLE 1.8446742e19
#define FL_MODERATE 1e18
#define FL_LARGE 1e29
#define FL_TINY 1e-35
#define FL_TINY_ROOT 1e-9
#define FL_TINY_BETA 0.7
#else
typedef double fl_real;
#define FL_PANEL 8
#define FL_SQUARABLE 1.3407807929942596e154
#define FL_MODERATE 1e153
#define FL_LARGE 1e290
#define FL_TINY 1e-290
#define FL_TINY_ROOT 1e-20
#define FL_TINY_BETA 0.1
#endif

#define FL_CACHE_LINE 64        /* bytes */

#endif
