// What integer_prepare.cpp has for integer_run.cpp.
#pragma once

#include <vector>

#include "integer_network.hpp"

namespace winograd::integers {

// The prepared form of a program; throws std::invalid_argument with a sentence.
std::vector<uint8_t> prepare(const uint8_t *program, int64_t bytes);

}  // namespace winograd::integers
