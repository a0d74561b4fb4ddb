/* The empirical risk of f(x) = w1 relu(w2 x) under squared error on a grid of POINTS x POINTS.
 *
 * Usage: landscape DATA SURFACE REPETITIONS. DATA holds SAMPLES floats x, then as many y; w1 and w2
 * go from -5 to 5. The model runs in float, the sum over samples in double. Prints the seconds of
 * every repetition; SURFACE gets the risks as doubles, w1 first.
 * Compile with -DPOINTS= -DSAMPLES=.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float place(int i) { return (float)(-5 + 10.0 * i / (POINTS - 1)); }

static void landscape(const float *restrict x, const float *restrict y, double *surface) {
  for (int i = 0; i < POINTS; i++)
    for (int j = 0; j < POINTS; j++) {
      float w1 = place(i), w2 = place(j);
      double sum = 0;
      for (int k = 0; k < SAMPLES; k++) {
        float z = w2 * x[k], off = w1 * (z > 0 ? z : 0) - y[k];
        sum += (double)(off * off);
      }
      surface[(long)i * POINTS + j] = sum / SAMPLES;
    }
}

int main(int argc, char **argv) {
  const size_t size = (size_t)POINTS * POINTS;
  float *data = malloc(sizeof(float) * 2 * SAMPLES);
  double *surface = malloc(sizeof(double) * size);
  FILE *in = argc == 4 ? fopen(argv[1], "rb") : NULL;
  if (!in || !data || !surface || fread(data, sizeof(float), 2 * SAMPLES, in) != 2 * SAMPLES)
    return 1;
  for (int i = 0; i < atoi(argv[3]); i++) {
    double begin = now();
    landscape(data, data + SAMPLES, surface);
    printf("%.9f\n", now() - begin);
  }
  FILE *out = fopen(argv[2], "wb");
  if (!out || fwrite(surface, sizeof(double), size, out) != size) return 1;
  return fclose(out);
}
