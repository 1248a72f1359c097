// What integer_prepare.cpp has for integer_run.cpp.
#pragma once

#include <vector>

#include "integer_network.hpp"

namespace winograd::integers {

// The prepared form of a program; throws std::invalid_argument with a sentence.
std::vector<uint8_t> prepare(const uint8_t *program, int64_t bytes);

// Random, so that nothing that was not made by `prepare` in this process is taken for it.
uint64_t mark_of_this_process();

}  // namespace winograd::integers
