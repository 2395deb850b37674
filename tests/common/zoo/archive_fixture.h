// A network of nobody's zoo, as its owner would script it: the tests' own model.
#ifndef DISTILL_TESTS_COMMON_ZOO_ARCHIVE_FIXTURE_H_
#define DISTILL_TESTS_COMMON_ZOO_ARCHIVE_FIXTURE_H_

#include <torch/script.h>
#include <torch/torch.h>

#include <fstream>
#include <string>

namespace distill {

// Grey images of `side` x `side` to 4 classes. Modules conv1, bn1, layer1.conv, layer1.bn, layer2.conv, layer2.bn,
// layer2.shortcut (1x1, stride 2), fc, and a parameter `scale` beside them, which multiplies what goes into fc; dropout
// before it (`dropout`). Taps stem and layer1 [4, s, s], layer2 [8, s/2, s/2], side (layer1's convolution), output.
inline torch::jit::Module OwnNetwork(double dropout = 0.1) {
  const auto unit = std::make_shared<torch::jit::CompilationUnit>();
  at::Generator generator = at::detail::createCPUGenerator(/*seed=*/7);
  const auto module = [&](const std::string& name) {
    torch::jit::Module made(name, unit);
    made.register_attribute("training", c10::BoolType::get(), true);
    return made;
  };
  const auto conv = [&](int64_t in, int64_t out, int64_t kernel) {
    torch::jit::Module made = module("__torch__.Conv" + std::to_string(in) + "_" + std::to_string(out * kernel));
    made.register_parameter(
        "weight", torch::empty({out, in, kernel, kernel}).normal_(0, 0.4, generator).requires_grad_(true), false);
    return made;
  };
  const auto norm = [&](int64_t channels, const std::string& name) {
    torch::jit::Module made = module("__torch__.Norm" + name);
    made.register_parameter("weight", torch::ones({channels}).requires_grad_(true), false);
    made.register_parameter("bias", torch::zeros({channels}).requires_grad_(true), false);
    made.register_buffer("running_mean", torch::zeros({channels}));
    made.register_buffer("running_var", torch::ones({channels}));
    made.register_buffer("num_batches_tracked", torch::zeros({}, torch::kInt64));
    made.define(R"py(
def forward(self, x: Tensor) -> Tensor:
    if self.training:
        self.num_batches_tracked.add_(1)
    return torch.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, self.training, 0.1, 1e-05, True)
)py");
    return made;
  };
  torch::jit::Module layer1 = module("__torch__.Layer1");
  layer1.register_module("conv", conv(4, 4, 3));
  layer1.register_module("bn", norm(4, "1"));
  torch::jit::Module layer2 = module("__torch__.Layer2");
  layer2.register_module("conv", conv(4, 8, 3));
  layer2.register_module("bn", norm(8, "2"));
  layer2.register_module("shortcut", conv(4, 8, 1));
  torch::jit::Module head = module("__torch__.Head");
  head.register_parameter("weight", torch::empty({4, 8}).normal_(0, 0.3, generator).requires_grad_(true), false);
  head.register_parameter("bias", torch::zeros({4}).requires_grad_(true), false);
  torch::jit::Module net = module("__torch__.Net");
  net.register_parameter("scale", torch::ones({8}).requires_grad_(true), false);
  net.register_module("conv1", conv(1, 4, 3));
  net.register_module("bn1", norm(4, "0"));
  net.register_module("layer1", layer1);
  net.register_module("layer2", layer2);
  net.register_module("fc", head);
  std::string forward = R"py(
def forward(self, x: Tensor) -> Dict[str, Tensor]:
    stem = torch.relu(self.bn1.forward(torch.conv2d(x, self.conv1.weight, None, [1, 1], [1, 1])))
    side = torch.conv2d(stem, self.layer1.conv.weight, None, [1, 1], [1, 1])
    one = torch.relu(self.layer1.bn.forward(side) + stem)
    body = self.layer2.bn.forward(torch.conv2d(one, self.layer2.conv.weight, None, [2, 2], [1, 1]))
    two = torch.relu(body + torch.conv2d(one, self.layer2.shortcut.weight, None, [2, 2]))
    pooled = torch.dropout(torch.mean(two, [2, 3]) * self.scale, DROPOUT, self.training)
    return {"stem": stem, "layer1": one, "layer2": two, "side": side, "output": torch.linear(pooled, self.fc.weight, self.fc.bias)}
)py";
  forward.replace(forward.find("DROPOUT"), 7, std::to_string(dropout));
  net.define(forward);
  net.eval();
  return net;
}

// NAME.pt and NAME.pt.yaml in `folder`.
inline void WriteOwnNetwork(const std::string& folder, const std::string& name, double dropout = 0.1, int side = 12) {
  OwnNetwork(dropout).save(folder + "/" + name + ".pt");
  std::ofstream(folder + "/" + name + ".pt.yaml")
      << "in_channels: 1\nimage: " << side << "x" << side << "\nmean: [0.4]\nstd: [0.3]\nstages: [layer1, layer2]\n";
}

}  // namespace distill

#endif  // DISTILL_TESTS_COMMON_ZOO_ARCHIVE_FIXTURE_H_
