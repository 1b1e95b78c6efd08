/* The type of a model's values, how many of them go side by side, and the cache line that memory begins at.

   Uses nothing. */

#ifndef FL_REAL_H
#define FL_REAL_H

typedef double fl_real;
#define FL_PANEL 8              /* values in a vec, which are a cache line */
#define FL_CACHE_LINE 64        /* bytes */

#endif
