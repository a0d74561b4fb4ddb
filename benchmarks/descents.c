/* Gradient descent on the function of study 8 from many starts, each iterate and loss recorded, or the
 * last ones alone.
 *
 * Usage: descents STARTS RECORD REPETITIONS. STARTS holds RUNS pairs (x, y) of doubles. Prints the
 * seconds of every repetition; RECORD gets the last one's x, y and loss, each (ROWS, RUNS), where ROWS
 * is STEPS + 1, or 1 for the last. Compile with -DRUNS= -DSTEPS= -DROWS= -DREAL=float or double
 * -DSHIFT=0 or 1 -DTHREADS=1, or more with -fopenmp. GCC joins the sine and the cosine of one argument
 * to a call of sincos for one number at a time; with SHIFT the cosine is a shifted sine, and all of
 * them are vectorised.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define RATE ((REAL)2e-3)
/* sinf for float and sin for double, without <tgmath.h>, which hides them from the vectoriser. */
#define SIN(a) (sizeof(REAL) == sizeof(float) ? (REAL)sinf((float)(a)) : (REAL)sin((double)(a)))
#if SHIFT
#define COS(a) SIN((a) + (REAL)1.5707963267948966)
#else
#define COS(a) (sizeof(REAL) == sizeof(float) ? (REAL)cosf((float)(a)) : (REAL)cos((double)(a)))
#endif

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The runs from `low` up to `high`. */
static void descend(const double *starts, REAL *xs, REAL *ys, REAL *losses, int low, int high) {
  static REAL x[RUNS], y[RUNS];
  for (int i = low; i < high; i++) {
    x[i] = (REAL)starts[2 * i];
    y[i] = (REAL)starts[2 * i + 1];
  }
  for (long t = 0; t <= STEPS; t++) {
    long row = ROWS == 1 ? 0 : t;
    REAL *restrict px = xs + row * RUNS, *restrict py = ys + row * RUNS;
    REAL *restrict loss = losses + row * RUNS;
    for (int i = low; i < high; i++) {
      REAL a = x[i] + 4, b = 3 * y[i] - 5, u = x[i] + 2, v = y[i] - 4, w = 2 * u * v * v;
      REAL sa = SIN(a), ca = COS(a), sb = SIN(b), cb = COS(b), sw = SIN(w), cw = COS(w);
      px[i] = x[i];
      py[i] = y[i];
      loss[i] = sa * (cb + (REAL)0.3) + (REAL)0.5 * cw;
      x[i] -= RATE * (ca * (cb + (REAL)0.3) - sw * v * v);
      y[i] -= RATE * (-3 * sa * sb - 2 * sw * u * v);
    }
  }
}

int main(int argc, char **argv) {
  size_t size = (size_t)RUNS * ROWS;
  double *starts = malloc(sizeof(double) * 2 * RUNS);
  REAL *record = malloc(sizeof(REAL) * 3 * size);
  FILE *in = argc == 4 ? fopen(argv[1], "rb") : NULL;
  if (!in || !starts || !record || fread(starts, sizeof(double), 2 * RUNS, in) != 2 * RUNS) return 1;
  for (int i = 0; i < atoi(argv[3]); i++) {
    double begin = now();
#pragma omp parallel for num_threads(THREADS)
    for (int k = 0; k < THREADS; k++)
      descend(starts, record, record + size, record + 2 * size, (int)((long)RUNS * k / THREADS),
              (int)((long)RUNS * (k + 1) / THREADS));
    printf("%.9f\n", now() - begin);
  }
  FILE *out = fopen(argv[2], "wb");
  if (!out || fwrite(record, sizeof(REAL), 3 * size, out) != 3 * size) return 1;
  return fclose(out);
}
