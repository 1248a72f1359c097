#define WINOGRAD_VARIANT portable
#define WINOGRAD_LANES 4
#include "float_steps.hpp"
