// Reading programs of whole networks: words of 32 bits, little-endian, that may come from anywhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace winograd::programs {

inline constexpr int64_t kMostNumbers = int64_t{1} << 28;  // of one tensor
inline constexpr int64_t kMostSide = int64_t{1} << 20;
inline constexpr int64_t kMostValues = 1 << 20;

using Words = std::vector<int32_t>;
using Floats = std::vector<float>;

// Throws std::invalid_argument with the sentence that the parts make.
template <class... Parts>
[[noreturn]] void refuse(const Parts &...parts) {
  std::string sentence;
  const auto text = [](const auto &part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>) return std::to_string(part);
    else return std::string(part);
  };
  ((sentence += text(parts)), ...);
  throw std::invalid_argument(sentence);
}

class Reader {
 public:
  Reader(const uint8_t *program, int64_t bytes) : at_(program), left_(bytes) {}

  int32_t word() { return one<int32_t>(); }
  float number() { return one<float>(); }
  int32_t between(int64_t least, int64_t most, const char *name) {
    const int32_t x = word();
    if (x < least || x > most) refuse("The program's ", name, " is ", x, ", not ", least, " to ", most, ".");
    return x;
  }
  void pair(int32_t (&of)[2], int64_t least, const char *name) {
    for (int32_t &x : of) x = between(least, kMostSide, name);
  }
  Words words(int64_t count) { return array<int32_t>(count); }
  Words words(int64_t count, int64_t least, int64_t most, const char *name) {
    Words found = words(count);
    for (const int32_t x : found)
      if (x < least || x > most) refuse("One of the program's ", name, " is ", x, ", not ", least, " to ", most, ".");
    return found;
  }
  Floats floats(int64_t count) { return array<float>(count); }
  // Padded to whole words.
  const int8_t *bytes(int64_t count) { return reinterpret_cast<const int8_t *>(take((count + 3) / 4 * 4)); }
  bool is_at_end() const { return left_ == 0; }

 private:
  template <class T>
  T one() {
    T x;
    std::memcpy(&x, take(4), sizeof x);
    return x;
  }
  template <class T>
  std::vector<T> array(int64_t count) {
    const uint8_t *const from = take(4 * count);
    std::vector<T> found(static_cast<size_t>(count));
    if (count > 0) std::memcpy(found.data(), from, static_cast<size_t>(4 * count));
    return found;
  }
  const uint8_t *take(int64_t bytes) {
    if (bytes > left_) refuse("The program ends too early.");
    const uint8_t *const here = at_;
    at_ += bytes;
    left_ -= bytes;
    return here;
  }
  const uint8_t *at_;
  int64_t left_;
};

}  // namespace winograd::programs
