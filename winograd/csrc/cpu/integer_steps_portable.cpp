#define WINOGRAD_VARIANT portable
#include "integer_steps.hpp"
