#define WINOGRAD_VARIANT avx512
#include "integer_steps.hpp"
