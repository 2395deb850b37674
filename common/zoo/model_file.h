// Which model files a teacher server or a student loads, and how a file says what is in it. No torch here.
//
// A model is a file with weights (*.safetensors, for networks of the zoo) or a TorchScript archive (*.pt). What the
// weights do not say themselves stands in a sidecar, FILE.yaml beside FILE:
//   arch: resnet50          zoo name; optional for archives, where it is "torchscript"
//   width: 64               optional: channels of the first convolution
//   num_classes: 1000       required, except for archives (found by a dry run)
//   in_channels: 3
//   image: 224x224          height x width; [224, 224], as job files write it, is the same
//   mean: [0.485, 0.456, 0.406]   per channel, of pixel/255; default 0
//   std: [0.229, 0.224, 0.225]    default 1
// and, of archives only (scripts/export_model.py writes all of it):
//   digest: 5d41...         sha256 of FILE: another file beside this description is refused
//   stages: [layer1, layer2]      taps that end a stage, in order of execution
//   taps:                   those it has; checked when it is loaded
//     layer1: [64, 56, 56]
// Stateless; any thread.
#ifndef DISTILL_COMMON_ZOO_MODEL_FILE_H_
#define DISTILL_COMMON_ZOO_MODEL_FILE_H_

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/plan/plan.h"
#include "common/status.h"
#include "common/zoo/architecture.h"

namespace distill {

struct ModelFile {
  std::string name;  // under which it is served: [A-Za-z0-9] then at most 62 of [A-Za-z0-9._-]
  std::string path;
  // Named by --model: the server does not start without it. False: found in a folder, where one bad file must not stop
  // the others.
  bool required = true;
};

struct ModelFiles {
  std::vector<ModelFile> files;
  // Files of the folder that cannot be served under any name, each with the reason: a name that is none, a second file
  // of one stem, a link to nowhere.
  std::vector<std::string> left_out;
};

// The models of the flags: each `flags` entry NAME=FILE, then all *.safetensors and *.pt in `folder` ("" for none),
// sorted, named by their stem. Names that begin with a dot are litter (._x.pt of a Mac, .x.pt.swp) and not looked at.
// kInvalidArgument: not NAME=FILE, a bad or duplicate name among the flags, no model at all; kNotFound: no such folder.
StatusOr<ModelFiles> CollectModelFiles(const std::vector<std::string>& flags, const std::string& folder);

// The archives (*.pt) in a student's model folder; the rest as CollectModelFiles does it. A folder without any is fine.
StatusOr<ModelFiles> CollectArchives(const std::string& folder);

// True for *.pt.
bool IsTorchScriptFile(std::string_view path);

// What a sidecar says.
struct ModelSidecar {
  ModelSpec spec;
  std::string digest;  // "" when not given
  std::vector<std::string> stages;
  std::map<std::string, TapShape> taps;
};

// The sidecar of `model_path`, or nullopt when there is none. kInvalidArgument: not YAML, more than 64 KiB, a second
// document (separators without content are no document), unknown key (with the nearest), a value of the wrong type or
// range; the message names the file and the key.
StatusOr<std::optional<ModelSidecar>> ReadSidecar(const std::string& model_path);
// kFailedPrecondition: `bytes`, those of the archive `path`, are not those that the sidecar describes; or it lists a
// tap that was not found, or found with another shape.
Status CheckArchiveIsDescribed(const ModelSidecar& sidecar, const std::string& path, std::string_view bytes,
                               const std::vector<TapInfo>& found);
// kInvalidArgument names the first of these that does not hold: in_channels, image_height and image_width are set; mean
// and std are empty or have in_channels entries; std > 0.
Status CheckImageSpec(const ModelSpec& spec, const std::string& path);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_MODEL_FILE_H_
