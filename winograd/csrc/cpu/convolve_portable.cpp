#define WINOGRAD_VARIANT portable
#define WINOGRAD_LANES 4
#include "convolve.hpp"
