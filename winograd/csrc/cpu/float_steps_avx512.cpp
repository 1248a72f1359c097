#define WINOGRAD_VARIANT avx512
#define WINOGRAD_LANES 16
#include "float_steps.hpp"
