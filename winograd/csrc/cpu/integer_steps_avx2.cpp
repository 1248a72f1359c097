#define WINOGRAD_VARIANT avx2
#include "integer_steps.hpp"
