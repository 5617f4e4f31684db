// fastinfer::run_program: a graph of operators in one call. Each is the function that its own call
// would reach; what is saved are some 4 us apiece in Python and torch's dispatcher.
#include <string_view>
#include <unordered_map>

#include "ops/functions.h"
#include "ops/program.h"
#include "ops/views.h"

namespace fastinfer::ops {
namespace {

constexpr const char* kOp = "run_program";

const std::unordered_map<std::string_view, Instruction>& instructions() {
  static const std::unordered_map<std::string_view, Instruction> all{
      {"act_mul", Call<act_mul>::run},
      {"attention", Call<attention>::run},
      {"contiguous", Call<contiguous>::run},
      {"expand", Call<expand>::run},
      {"flatten", Call<flatten>::run},
      {"layer_norm", Call<layer_norm>::run},
      {"linear_w8a16", Call<linear_w8a16>::run},
      {"linear_w8a8", Call<linear_w8a8>::run},
      {"linear_w8a8_cat", Call<linear_w8a8_cat>::run},
      {"linear_w8a8_gated", Call<linear_w8a8_gated>::run},
      {"permute", Call<permute>::run},
      {"quantize_rows", Call<quantize_rows>::run},
      {"quantize_rowwise", Call<quantize_rowwise>::run},
      {"reshape", Call<reshape>::run},
      {"rms_norm", Call<rms_norm>::run},
      {"rope", Call<rope>::run},
      {"select", Call<select>::run},
      {"slice", Call<slice>::run},
      {"split_with_sizes", Call<split_with_sizes>::run},
      {"squeeze", Call<squeeze>::run},
      {"transpose", Call<transpose>::run},
      {"unflatten", Call<unflatten>::run},
      {"unsqueeze", Call<unsqueeze>::run},
  };
  return all;
}

// A list's entries, as they stand in the program.
std::vector<int64_t> words(Reader* r) {
  std::vector<int64_t> list(size_t(r->count()));
  for (int64_t& word : list) word = r->word();
  return list;
}

void run_instruction(Reader* r) {
  const std::string name = r->text();
  const auto found = instructions().find(name);
  STD_TORCH_CHECK(found != instructions().end(), kOp,
                  ": program names an operator that programs do not have");
  const std::vector<int64_t> outputs = words(r), dropped = words(r);
  std::vector<Tensor> results = found->second(r);
  STD_TORCH_CHECK(outputs.size() == results.size(), kOp, ": program takes ", outputs.size(),
                  " outputs of ", name, ", want ", results.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i] >= 0) r->slot(outputs[i]) = std::move(results[i]);
  }
  for (int64_t value : dropped) r->slot(value).reset();
}

std::vector<Tensor> run_program(const Tensor& program, const std::vector<Tensor>& tensors,
                                const std::vector<int64_t>& sizes) {
  check_vector(kOp, "program", program, ScalarType::Long, -1);
  const int64_t* begin = static_cast<const int64_t*>(program.const_data_ptr());
  Reader reader(begin, begin + program.numel(), sizes);
  const int64_t given = reader.word(), values = reader.word(), count = reader.word();
  STD_TORCH_CHECK(given == int64_t(tensors.size()), kOp, ": tensors has length ", tensors.size(),
                  ", want ", given, " as the program says");
  STD_TORCH_CHECK(values >= given && values - given <= program.numel(), kOp, ": program has ",
                  values, " values, want no more than it can make");
  const std::vector<int64_t> results = words(&reader);
  reader.values.assign(tensors.begin(), tensors.end());
  reader.values.resize(size_t(values));
  for (int64_t i = 0; i < count; ++i) run_instruction(&reader);
  std::vector<Tensor> outputs;
  outputs.reserve(results.size());
  for (int64_t result : results) {
    const std::optional<Tensor>& found = reader.slot(result);
    STD_TORCH_CHECK(found, kOp, ": program returns a value that is not there");
    outputs.push_back(*found);
  }
  return outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) { m.impl("run_program", TORCH_BOX(&run_program)); }

}  // namespace fastinfer::ops
