/* The type of a model's values, and how many of them go side by side. */

#ifndef FL_REAL_H
#define FL_REAL_H

typedef double fl_real;
#define FL_PANEL 8

#endif
