// A program: a graph of operators as numbers, so that all of it is one call.
//
// It is a vector of int64:
//
//   tensors that it is given, values in all, instructions, [results],
//   then for each instruction: name, [outputs], [values to drop after it], arguments.
//
// Values are numbered: the given tensors first, then what the instructions make; an output that
// nothing reads is -1. A name is a string, a list in brackets its length and its entries. An
// argument is its Kind and what the kind needs.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/tensor.h"

namespace fastinfer::ops {

enum class Kind : int64_t {
  none = 0,
  tensor = 1,   // its value's number
  integer = 2,  // itself
  size = 3,     // its place among the sizes that the program is given
  real = 4,     // the bits of a double
  dtype = 5,    // its place in kDTypes
  text = 6,     // its length, then its characters, eight a word
  list = 7,     // its length, then arguments
};

inline constexpr ScalarType kDTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half};

// Goes through a program. Whatever does not fit is an error: nothing is read past the end.
class Reader {
 public:
  Reader(const int64_t* begin, const int64_t* end, const std::vector<int64_t>& sizes)
      : at_(begin), end_(end), sizes_(sizes) {}

  int64_t word() {
    STD_TORCH_CHECK(at_ < end_, "run_program: program ends too early");
    return *at_++;
  }

  // A count of things that take at least a word each.
  int64_t count() {
    const int64_t count = word();
    STD_TORCH_CHECK(count >= 0 && count <= end_ - at_, "run_program: program has a list of ", count,
                    ", want one that fits into it");
    return count;
  }

  std::string text() {
    const int64_t length = word(), words = (length + 7) / 8;
    STD_TORCH_CHECK(length >= 0 && words <= end_ - at_, "run_program: program has a text of ",
                    length, ", want one that fits into it");
    std::string text(size_t(length), '\0');
    if (length > 0) std::memcpy(text.data(), at_, size_t(length));
    at_ += words;
    const bool plain = std::all_of(text.begin(), text.end(), [](char c) { return c > 0; });
    STD_TORCH_CHECK(plain, "run_program: program has a text that is not ASCII");
    return text;
  }

  // The value with the next number, which must have been made and not dropped.
  const Tensor& tensor() {
    const std::optional<Tensor>& found = slot(word());
    STD_TORCH_CHECK(found, "run_program: program reads a value that is not there");
    return *found;
  }

  std::optional<Tensor>& slot(int64_t i) {
    STD_TORCH_CHECK(i >= 0 && size_t(i) < values.size(), "run_program: program names value ", i,
                    ", want one of ", values.size());
    return values[size_t(i)];
  }

  // The size with the next number.
  int64_t size() {
    const int64_t i = word();
    STD_TORCH_CHECK(i >= 0 && size_t(i) < sizes_.size(), "run_program: program names size ", i,
                    ", want one of ", sizes_.size());
    return sizes_[size_t(i)];
  }

  Kind kind() { return Kind(word()); }

  std::vector<std::optional<Tensor>> values;

 private:
  const int64_t *at_, *end_;
  const std::vector<int64_t>& sizes_;
};

inline void want(bool fits, const char* what) {
  STD_TORCH_CHECK(fits, "run_program: program has an argument of another kind, want ", what);
}

// The next argument as a T.
template <class T>
struct Argument;

template <>
struct Argument<Tensor> {
  static Tensor read(Reader* r) {
    want(r->kind() == Kind::tensor, "a tensor");
    return r->tensor();
  }
};

template <>
struct Argument<std::optional<Tensor>> {
  static std::optional<Tensor> read(Reader* r) {
    const Kind kind = r->kind();
    want(kind == Kind::tensor || kind == Kind::none, "a tensor or None");
    if (kind == Kind::none) return std::nullopt;
    return r->tensor();
  }
};

template <>
struct Argument<std::optional<int64_t>> {
  static std::optional<int64_t> read(Reader* r) {
    const Kind kind = r->kind();
    want(kind == Kind::integer || kind == Kind::size || kind == Kind::none, "an int or None");
    if (kind == Kind::none) return std::nullopt;
    return kind == Kind::size ? r->size() : r->word();
  }
};

template <>
struct Argument<int64_t> {
  static int64_t read(Reader* r) {
    const auto found = Argument<std::optional<int64_t>>::read(r);
    want(found.has_value(), "an int");
    return *found;
  }
};

template <>
struct Argument<bool> {
  static bool read(Reader* r) { return Argument<int64_t>::read(r) != 0; }
};

template <>
struct Argument<std::optional<double>> {
  static std::optional<double> read(Reader* r) {
    const Kind kind = r->kind();
    want(kind == Kind::real || kind == Kind::integer || kind == Kind::none, "a float or None");
    if (kind == Kind::none) return std::nullopt;
    const int64_t word = r->word();
    if (kind == Kind::integer) return double(word);
    double real;
    std::memcpy(&real, &word, sizeof real);
    return real;
  }
};

template <>
struct Argument<double> {
  static double read(Reader* r) {
    const auto found = Argument<std::optional<double>>::read(r);
    want(found.has_value(), "a float");
    return *found;
  }
};

template <>
struct Argument<std::optional<ScalarType>> {
  static std::optional<ScalarType> read(Reader* r) {
    const Kind kind = r->kind();
    want(kind == Kind::dtype || kind == Kind::none, "a dtype or None");
    if (kind == Kind::none) return std::nullopt;
    const int64_t i = r->word();
    want(i >= 0 && i < int64_t(std::size(kDTypes)), "a float dtype");
    return kDTypes[i];
  }
};

template <>
struct Argument<std::string> {
  static std::string read(Reader* r) {
    want(r->kind() == Kind::text, "a string");
    return r->text();
  }
};

template <class T>
struct Argument<std::vector<T>> {
  static std::vector<T> read(Reader* r) {
    want(r->kind() == Kind::list, "a list");
    std::vector<T> list;
    const int64_t count = r->count();
    list.reserve(size_t(count));
    for (int64_t i = 0; i < count; ++i) list.push_back(Argument<T>::read(r));
    return list;
  }
};

inline std::vector<Tensor> as_list(Tensor result) {
  std::vector<Tensor> list;
  list.push_back(std::move(result));
  return list;
}
inline std::vector<Tensor> as_list(std::vector<Tensor> results) { return results; }
template <class... T>
std::vector<Tensor> as_list(std::tuple<T...> results) {
  return std::apply([](auto&... t) { return std::vector<Tensor>{std::move(t)...}; }, results);
}

// An operator that takes its arguments from a program.
using Instruction = std::vector<Tensor> (*)(Reader*);

// Calls F with as many arguments as it has.
template <auto F>
struct Call;

template <class R, class... A, R (*F)(A...)>
struct Call<F> {
  static std::vector<Tensor> run(Reader* r) {
    // Braces: from left to right.
    std::tuple<std::decay_t<A>...> arguments{Argument<std::decay_t<A>>::read(r)...};
    return as_list(std::apply(F, arguments));
  }
};

}  // namespace fastinfer::ops
