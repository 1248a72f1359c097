#define WINOGRAD_VARIANT avx2
#define WINOGRAD_LANES 8
#include "float_steps.hpp"
