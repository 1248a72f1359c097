// Says in a sentence what is wrong with a problem. What passes is safe to compute with.
#pragma once

#include "../winograd.h"

namespace winograd {

// Remembers the sentence for winograd_last_error(), and answers 1.
int fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

bool is_sound(const winograd_problem &problem);

}  // namespace winograd
