#include "common/zoo/zoo_builder.h"

#include <algorithm>

namespace distill {

ModuleDef Conv(std::string name, uint32_t in, uint32_t out, uint32_t kernel, uint32_t stride, uint32_t dilation) {
  return {.name = std::move(name),
          .kind = ModuleKind::kConv2d,
          .in = in,
          .out = out,
          .kernel = kernel,
          .stride = stride,
          .padding = dilation * (kernel / 2),
          .dilation = dilation};
}

ModuleDef DepthwiseConv(std::string name, uint32_t channels, uint32_t kernel, uint32_t stride, uint32_t dilation) {
  ModuleDef conv = Conv(std::move(name), channels, channels, kernel, stride, dilation);
  conv.groups = channels;
  return conv;
}

ModuleDef Plain(std::string name, ModuleKind kind, uint32_t channels) {
  return {.name = std::move(name), .kind = kind, .in = channels, .out = channels};
}

ModuleDef Norm(std::string name, uint32_t channels) {
  return Plain(std::move(name), ModuleKind::kBatchNorm2d, channels);
}

ModuleDef MaxPool(std::string name, uint32_t channels, uint32_t kernel, uint32_t stride, uint32_t padding) {
  ModuleDef pool = Plain(std::move(name), ModuleKind::kMaxPool2d, channels);
  pool.kernel = kernel;
  pool.stride = stride;
  pool.padding = padding;
  return pool;
}

ModuleDef AvgPool(std::string name, uint32_t channels, uint32_t side) {
  ModuleDef pool = Plain(std::move(name), ModuleKind::kAvgPool2d, channels);
  pool.out_height = pool.out_width = side;
  return pool;
}

ModuleDef Linear(std::string name, uint32_t in, uint32_t out, InitKind init) {
  return {.name = std::move(name), .kind = ModuleKind::kLinear, .in = in, .out = out, .init = init};
}

ModuleDef Chain(std::string name, std::vector<ModuleDef> children) {
  ModuleDef chain{.name = std::move(name), .children = std::move(children)};
  if (!chain.children.empty()) {
    chain.in = chain.children.front().in;
    chain.out = chain.children.back().out;
  }
  return chain;
}

void AppendPooling(ModuleDef* root, uint32_t features) {
  root->children.push_back(AvgPool("avgpool", features, 1));
  root->children.push_back(Plain("flatten", ModuleKind::kFlatten, features));
}

ModuleDef WithBias(ModuleDef def) {
  def.bias = true;
  return def;
}

ModuleDef WithInit(ModuleDef def, InitKind init) {
  def.init = init;
  for (ModuleDef& child : def.children) child = WithInit(std::move(child), init);
  return def;
}

uint32_t Wiring::Run(const std::string& child, std::vector<uint32_t> inputs) {
  const auto& children = container_->children;
  const auto found =
      std::find_if(children.begin(), children.end(), [&](const ModuleDef& def) { return def.name == child; });
  container_->steps.push_back({static_cast<uint32_t>(found - children.begin()), std::move(inputs)});
  return static_cast<uint32_t>(container_->inputs + container_->steps.size() - 1);
}

uint32_t Wiring::Run(ModuleDef child, std::vector<uint32_t> inputs) {
  container_->children.push_back(std::move(child));
  container_->steps.push_back({static_cast<uint32_t>(container_->children.size() - 1), std::move(inputs)});
  return static_cast<uint32_t>(container_->inputs + container_->steps.size() - 1);
}

uint32_t Wiring::Relu(uint32_t value) { return Run(Plain("", ModuleKind::kRelu, container_->out), {value}); }

}  // namespace distill
