// What this processor can do at most: peak THREADS SECONDS prints "GFLOP/s, L3 read GB/s, DRAM read GB/s" on one line.
//
// Multiply-adds in registers; reads of a buffer that fits the L3 and of one that does not. Compiled with the processor's
// own instructions (-march=native), vectors as long as it has them.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
#define LANES 16
#define CHANGED(x) ({ __asm__ volatile("" : "+v"(x)); })  // "x" would leave out the upper half of the registers
#elif defined(__AVX__)
#define LANES 8
#define CHANGED(x) ({ __asm__ volatile("" : "+x"(x)); })
#else
#define LANES 4
#define CHANGED(x) ({ __asm__ volatile("" : "+m"(x)); })
#endif
typedef float vector __attribute__((vector_size(4 * LANES)));

enum { CHAINS = 12 };  // more than latency x throughput, fewer than registers
static const size_t L3_BYTES = 6u << 20, DRAM_BYTES = 256u << 20;  // of each thread
static double seconds;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static double multiply_adds(void) {
  vector x, y;
  for (int lane = 0; lane < LANES; ++lane) x[lane] = 0.999f, y[lane] = 1e-3f;
  // Single variables: compilers keep an array of vectors in memory.
  vector a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x, l = x;
  double best = 0;
  for (double ends = now() + seconds; now() < ends;) {
    const int rounds = 200000;
    double began = now();
    for (int round = 0; round < rounds; ++round) {
      a = a * x + y, b = b * x + y, c = c * x + y, d = d * x + y, e = e * x + y, f = f * x + y;
      g = g * x + y, h = h * x + y, i = i * x + y, j = j * x + y, k = k * x + y, l = l * x + y;
      // "Changed" each round, so that twelve equal chains don't become one.
      CHANGED(a), CHANGED(b), CHANGED(c), CHANGED(d), CHANGED(e), CHANGED(f);
      CHANGED(g), CHANGED(h), CHANGED(i), CHANGED(j), CHANGED(k), CHANGED(l);
    }
    double rate = 2.0 * LANES * CHAINS * rounds / (now() - began);
    if (rate > best) best = rate;
  }
  return best;
}

static double reads(size_t bytes) {
  vector* data = aligned_alloc(64, bytes);
  size_t count = bytes / sizeof(vector);
  for (size_t i = 0; i < count; ++i) data[i] = (vector){1};
  double best = 0;
  for (double ends = now() + seconds; now() < ends;) {
    vector sum[8] = {0};
    double began = now();
    for (size_t i = 0; i < count; i += 8)
      for (int j = 0; j < 8; ++j) sum[j] += data[i + j];
    for (int j = 0; j < 8; ++j) CHANGED(sum[j]);
    double rate = bytes / (now() - began);
    if (rate > best) best = rate;
  }
  free(data);
  return best;
}

static pthread_barrier_t barrier;
static void* measure(void* out) {
  double* rates = out;
  pthread_barrier_wait(&barrier);
  rates[0] = multiply_adds();
  pthread_barrier_wait(&barrier);
  rates[1] = reads(L3_BYTES);
  pthread_barrier_wait(&barrier);
  rates[2] = reads(DRAM_BYTES);
  return NULL;
}

int main(int argc, char** argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1;
  seconds = argc > 2 ? atof(argv[2]) : 1;
  pthread_t handles[threads];
  double rates[threads][3], total[3] = {0};
  pthread_barrier_init(&barrier, NULL, threads);
  for (int i = 0; i < threads; ++i) pthread_create(&handles[i], NULL, measure, rates[i]);
  for (int i = 0; i < threads; ++i) {
    pthread_join(handles[i], NULL);
    for (int j = 0; j < 3; ++j) total[j] += rates[i][j];
  }
  printf("%.4g %.4g %.4g\n", total[0] / 1e9, total[1] / 1e9, total[2] / 1e9);
  return 0;
}
