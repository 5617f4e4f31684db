// The activation argument of an operator.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <string>

#include "cpu/activation.h"

namespace fastinfer::ops {

inline cpu::Activation parse_activation(const char* op, const std::string& name) {
  if (name == "none") return cpu::Activation::none;
  if (name == "relu") return cpu::Activation::relu;
  if (name == "gelu") return cpu::Activation::gelu;
  if (name == "gelu_tanh") return cpu::Activation::gelu_tanh;
  if (name == "silu") return cpu::Activation::silu;
  if (name == "quick_gelu") return cpu::Activation::quick_gelu;
  STD_TORCH_CHECK(false, op, ": activation is \"", name,
                  "\", want none, relu, gelu, gelu_tanh, silu or quick_gelu");
}

}  // namespace fastinfer::ops
