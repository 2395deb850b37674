// What the families of the zoo are put together from. Internal to common/zoo.
#ifndef DISTILL_COMMON_ZOO_ZOO_BUILDER_H_
#define DISTILL_COMMON_ZOO_ZOO_BUILDER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common/plan/plan.h"
#include "common/zoo/module_def.h"

namespace distill {

// A name of the zoo: what is built, and the sizes that a spec leaves open.
struct ZooEntry {
  std::string name;
  uint32_t width = 0;                              // channels of the first convolution, for which spec.width 0 stands
  uint32_t classes = 0;                            // Architecture::WithDefaults
  uint32_t side = 0;                               // pixels, likewise
  std::function<ZooTree(const ModelSpec&)> build;  // of a spec whose numbers are within the limits
};

// One function a family; each appends its names, ascending by size.
void AddCifarResNets(std::vector<ZooEntry>* zoo);      // resnet_family.cc
void AddResNets(std::vector<ZooEntry>* zoo);           // resnet_family.cc
void AddWideResNets(std::vector<ZooEntry>* zoo);       // resnet_family.cc
void AddVggs(std::vector<ZooEntry>* zoo);              // vgg_family.cc
void AddMobileNets(std::vector<ZooEntry>* zoo);        // mobilenet_family.cc
void AddShuffleNets(std::vector<ZooEntry>* zoo);       // shufflenet_family.cc
void AddSegmentationNets(std::vector<ZooEntry>* zoo);  // segmentation_family.cc

struct ResNetPlan {
  uint32_t depth;               // 18, 34, 50, 101, 152
  uint32_t output_stride = 32;  // 8 or 16: the stages behind keep that size and are dilated instead
  bool deep_stem = false;       // `layer0`: three 3x3 convolutions of width, width and 2 * width channels
  bool uniform = false;         // a dilated stage's first block is dilated as its others are
};
// Stem and stages, without pooling and classifier; root.out is the last one's number of channels.
ZooTree ResNetBackbone(const ModelSpec& spec, const ResNetPlan& plan);
// The same of mobilenet_v2, up to features.17, dilated as a ResNet. `split`: as low_level_features (0 to 3) and
// high_level_features (4 to 17), so that what is between them is at top level.
ZooTree MobileNetV2Backbone(const ModelSpec& spec, uint32_t output_stride, bool split);

// Padded so that stride 1 keeps the map's size.
ModuleDef Conv(std::string name, uint32_t in, uint32_t out, uint32_t kernel, uint32_t stride, uint32_t dilation = 1);
ModuleDef DepthwiseConv(std::string name, uint32_t channels, uint32_t kernel, uint32_t stride, uint32_t dilation = 1);
// Something that keeps the number of channels.
ModuleDef Plain(std::string name, ModuleKind kind, uint32_t channels);
ModuleDef Norm(std::string name, uint32_t channels);
ModuleDef MaxPool(std::string name, uint32_t channels, uint32_t kernel, uint32_t stride, uint32_t padding);
ModuleDef AvgPool(std::string name, uint32_t channels, uint32_t side);  // to side x side
ModuleDef Linear(std::string name, uint32_t in, uint32_t out, InitKind init = InitKind::kTorchDefault);
ModuleDef Chain(std::string name, std::vector<ModuleDef> children);
// The maps' mean as features, under the names that torchvision's functions have: avgpool, flatten.
void AppendPooling(ModuleDef* root, uint32_t features);

// `def` with the bias and the initial weights that it has in the reference.
ModuleDef WithBias(ModuleDef def);
ModuleDef WithInit(ModuleDef def, InitKind init);

// Writes a container's steps in the order in which its reference's forward calls them. Values are those of Step. A
// container's number of inputs is set before.
class Wiring {
 public:
  explicit Wiring(ModuleDef* container) : container_(container) {}
  // Runs the child of that name. Returns the value that comes out.
  uint32_t Run(const std::string& child, std::vector<uint32_t> inputs);
  // Adds a child and runs it.
  uint32_t Run(ModuleDef child, std::vector<uint32_t> inputs);
  // A plain function, which is no tap.
  uint32_t Relu(uint32_t value);

 private:
  ModuleDef* const container_;  // not owned: outlives this
};

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_ZOO_BUILDER_H_
