#include "common/zoo/architecture.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <set>

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/zoo/module_path.h"
#include "common/zoo/zoo_builder.h"

namespace distill {
namespace {

constexpr uint32_t kMinImage = 8;
constexpr uint32_t kMaxImage = 8192;
constexpr uint32_t kMaxChannels = 4096;
constexpr uint32_t kMaxClasses = 1000000;
constexpr uint32_t kMaxDenseClasses = 255;  // a label is one byte, and 255 marks pixels without one

// All families, by name in the order of Architecture::Names().
const std::vector<ZooEntry>& Zoo() {
  static const auto* const zoo = [] {
    auto* const entries = new std::vector<ZooEntry>();
    AddCifarResNets(entries);
    AddWideResNets(entries);
    AddVggs(entries);
    AddMobileNets(entries);
    AddShuffleNets(entries);
    AddResNets(entries);
    AddSegmentationNets(entries);
    return entries;
  }();
  return *zoo;
}
const ZooEntry* FindEntry(std::string_view arch) {
  const auto found =
      std::find_if(Zoo().begin(), Zoo().end(), [&](const ZooEntry& entry) { return entry.name == arch; });
  return found == Zoo().end() ? nullptr : &*found;
}

Status CheckRange(const ModelSpec& spec, std::string_view field, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return OkStatus();
  return absl::InvalidArgumentError(
      StrCat("model ", spec.arch, ": ", field, " is ", value, ", must be from ", low, " to ", high));
}

Status CheckStatistics(const ModelSpec& spec, std::string_view field, const std::vector<float>& values, bool positive) {
  if (values.empty()) return OkStatus();
  if (values.size() != spec.in_channels) {
    return absl::InvalidArgumentError(StrCat("model ", spec.arch, ": ", field, " has ", values.size(), " values for ",
                                             spec.in_channels, " input channels; give one per channel, or none"));
  }
  for (float v : values) {
    if (!std::isfinite(v) || (positive && v <= 0)) {
      return absl::InvalidArgumentError(
          StrCat("model ", spec.arch, ": ", field, " contains ", v, ", must be ", positive ? "above 0" : "finite"));
    }
  }
  return OkStatus();
}

std::string_view ParentOf(std::string_view name) {
  const size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : name.substr(0, dot);
}

// Runs the network on shapes: finds the taps in the order of execution.
class ShapeRun {
 public:
  ShapeRun(const std::vector<StateEntry>& state, std::vector<TapInfo>* taps) : taps_(taps) {
    for (uint32_t i = 0; i < state.size(); ++i) {
      if (!state[i].is_buffer) parameters_[std::string(ParentOf(state[i].name))].push_back(i);
    }
  }

  struct Value {
    TapShape shape;
    std::vector<uint32_t> needs;  // ascending
  };
  // `straight`: all that the output takes from the image passes through `inputs`.
  Value Execute(const ModuleDef& def, const std::string& path, const std::vector<const Value*>& inputs, bool straight) {
    Value value = IsContainer(def.kind) ? Container(def, path, inputs, straight) : Leaf(def, path, inputs);
    if (!def.name.empty()) {
      taps_->push_back({.path = path,
                        .kind = def.kind,
                        .shape = value.shape,
                        .needs = value.needs,
                        .is_cut = straight,
                        .multiply_adds = multiply_adds_});
    }
    return value;
  }

  const Status& status() const { return status_; }
  uint64_t multiply_adds() const { return multiply_adds_; }

 private:
  Value Container(const ModuleDef& def, const std::string& path, const std::vector<const Value*>& given,
                  bool straight) {
    const std::vector<Step> steps = StepsOf(def);
    const std::vector<size_t> last_use = LastUses(steps, given.size());
    std::vector<Value> values(given.size() + steps.size());
    for (size_t i = 0; i < given.size(); ++i) values[i] = *given[i];
    for (size_t k = 0; k < steps.size(); ++k) {
      const ModuleDef& child = def.children[steps[k].child];
      std::vector<const Value*> inputs;
      for (const uint32_t i : steps[k].inputs) inputs.push_back(&values[i]);
      // Inside a block of a network nobody cuts; elsewhere one can where no earlier value is read later on.
      bool cut = straight && def.kind == ModuleKind::kSequential;
      for (size_t i = 0; i < given.size() + k; ++i) cut = cut && last_use[i] <= k;
      values[given.size() + k] =
          Execute(child, child.name.empty() ? path : JoinModulePath(path, child.name), inputs, cut);
    }
    return std::move(values.back());
  }

  Value Leaf(const ModuleDef& def, const std::string& path, const std::vector<const Value*>& inputs) {
    Value out = *inputs[0];
    for (size_t i = 1; i < inputs.size(); ++i) AddNeeds(inputs[i]->needs, &out);
    if (const auto own = parameters_.find(path); own != parameters_.end()) AddNeeds(own->second, &out);
    TapShape& shape = out.shape;
    switch (def.kind) {
      case ModuleKind::kConv2d:
        shape = {def.out, OutputSize(shape[1], def, path), OutputSize(shape[2], def, path)};
        multiply_adds_ += uint64_t{shape[1]} * shape[2] * def.out * (def.in / def.groups) * def.kernel * def.kernel;
        break;
      case ModuleKind::kMaxPool2d:
        shape = {shape[0], OutputSize(shape[1], def, path), OutputSize(shape[2], def, path)};
        break;
      case ModuleKind::kAvgPool2d:
        shape = {shape[0], def.out_height, def.out_width};
        break;
      case ModuleKind::kUpsample:
        // Of two values, the second one's size is taken.
        shape = inputs.size() == 2 ? TapShape{shape[0], inputs[1]->shape[1], inputs[1]->shape[2]}
                                   : TapShape{shape[0], def.out_height, def.out_width};
        break;
      case ModuleKind::kFlatten:
        shape = {shape[0] * shape[1] * shape[2]};
        break;
      case ModuleKind::kLinear:
        shape = {def.out};
        multiply_adds_ += uint64_t{def.in} * def.out;
        break;
      case ModuleKind::kConcat:
        for (size_t i = 1; i < inputs.size(); ++i) shape[0] += inputs[i]->shape[0];
        break;
      case ModuleKind::kFirstHalf:
      case ModuleKind::kSecondHalf:
        shape[0] /= 2;
        break;
      default:  // as it came
        break;
    }
    return out;
  }

  uint32_t OutputSize(uint32_t size, const ModuleDef& def, const std::string& path) {
    const uint32_t reach = def.dilation * (def.kernel - 1) + 1;
    if (size + 2 * def.padding >= reach) return (size + 2 * def.padding - reach) / def.stride + 1;
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(StrCat("nothing would be left of the map behind '", path, "' (",
                                                  Name(def.kind), " of ", def.kernel, "x", def.kernel, " on ", size,
                                                  " pixels); take larger images"));
    }
    return 1;
  }

  static void AddNeeds(const std::vector<uint32_t>& more, Value* value) {
    std::vector<uint32_t> all;
    all.reserve(value->needs.size() + more.size());
    std::set_union(value->needs.begin(), value->needs.end(), more.begin(), more.end(), std::back_inserter(all));
    value->needs = std::move(all);
  }

  std::map<std::string, std::vector<uint32_t>> parameters_;  // of each module, positions in the state
  std::vector<TapInfo>* const taps_;                         // not owned: the caller's
  uint64_t multiply_adds_ = 0;
  Status status_;
};

// The module's own entries (parameters, then buffers, as torch lists them), then the children's.
void AppendState(const ModuleDef& def, const std::string& path, std::vector<StateEntry>* entries) {
  const auto add = [&](std::string_view name, std::vector<int64_t> shape, bool buffer = false, bool integer = false) {
    entries->push_back({JoinModulePath(path, name), std::move(shape), buffer, integer});
  };
  if (def.kind == ModuleKind::kConv2d) {
    add("weight", {def.out, def.in / def.groups, def.kernel, def.kernel});
    if (def.bias) add("bias", {def.out});
  } else if (def.kind == ModuleKind::kBatchNorm2d) {
    add("weight", {def.out});
    add("bias", {def.out});
    add("running_mean", {def.out}, true);
    add("running_var", {def.out}, true);
    add("num_batches_tracked", {}, true, true);
  } else if (def.kind == ModuleKind::kLinear) {
    add("weight", {def.out, def.in});
    add("bias", {def.out});
  }
  for (const ModuleDef& child : def.children) AppendState(child, JoinModulePath(path, child.name), entries);
}

uint64_t Elements(const StateEntry& entry) {
  uint64_t elements = 1;
  for (const int64_t extent : entry.shape) elements *= static_cast<uint64_t>(extent);
  return elements;
}

// '*' matches any letters but dots, '**' any letters, "**." also nothing. Table over (glob, path) positions: no input
// is slow.
bool GlobMatches(std::string_view glob, std::string_view path) {
  const size_t rows = glob.size() + 1, columns = path.size() + 1;
  std::vector<char> match(rows * columns, 0);
  const auto at = [&](size_t g, size_t p) -> char& { return match[g * columns + p]; };
  at(glob.size(), path.size()) = 1;
  for (size_t g = glob.size(); g-- > 0;) {
    for (size_t p = columns; p-- > 0;) {
      bool ok = false;
      if (glob.substr(g, 2) == "**") {
        ok = at(g + 2, p) || (p < path.size() && at(g, p + 1));
        const bool part_start = p == 0 || path[p - 1] == '.';
        if (glob.substr(g, 3) == "**." && part_start) ok = ok || at(g + 3, p);
      } else if (glob[g] == '*') {
        ok = at(g + 1, p) || (p < path.size() && path[p] != '.' && at(g, p + 1));
      } else {
        ok = p < path.size() && glob[g] == path[p] && at(g + 1, p + 1);
      }
      at(g, p) = ok;
    }
  }
  return at(0, 0);
}

}  // namespace

std::vector<std::string> Architecture::Names() {
  std::vector<std::string> names;
  for (const ZooEntry& entry : Zoo()) names.push_back(entry.name);
  return names;
}

ModelSpec Architecture::WithDefaults(ModelSpec spec) {
  const ZooEntry* const entry = FindEntry(spec.arch);
  if (entry == nullptr) return spec;
  if (spec.width == 0) spec.width = entry->width;
  if (spec.num_classes == 0) spec.num_classes = entry->classes;
  if (spec.in_channels == 0) spec.in_channels = 3;
  if (spec.image_height == 0) spec.image_height = entry->side;
  if (spec.image_width == 0) spec.image_width = entry->side;
  return spec;
}

StatusOr<Architecture> Architecture::Create(const ModelSpec& spec) {
  const ZooEntry* const entry = FindEntry(spec.arch);
  if (entry == nullptr) {
    const std::vector<std::string> names = Names();
    return absl::InvalidArgumentError(StrCat("unknown architecture '", spec.arch, "'", DidYouMean(spec.arch, names),
                                             " (known: ", absl::StrJoin(names, ", "), ")"));
  }
  Architecture arch;
  arch.spec_ = spec;
  if (spec.width == 0) arch.spec_.width = entry->width;
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "width", arch.spec_.width, 1, kMaxChannels));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "num_classes", spec.num_classes, 1, kMaxClasses));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "in_channels", spec.in_channels, 1, kMaxChannels));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "image height in pixels", spec.image_height, kMinImage, kMaxImage));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "image width in pixels", spec.image_width, kMinImage, kMaxImage));
  DISTILL_RETURN_IF_ERROR(CheckStatistics(spec, "mean", spec.mean, false));
  DISTILL_RETURN_IF_ERROR(CheckStatistics(spec, "std", spec.std, true));
  ZooTree tree = entry->build(arch.spec_);
  arch.root_ = std::move(tree.root);
  arch.stages_ = std::move(tree.stages);
  AppendState(arch.root_, "", &arch.state_);
  ShapeRun run(arch.state_, &arch.taps_);
  const ShapeRun::Value image{{spec.in_channels, spec.image_height, spec.image_width}, {}};
  ShapeRun::Value output = run.Execute(arch.root_, "", {&image}, /*straight=*/true);
  if (!run.status().ok()) return Annotate(run.status(), StrCat("model ", spec.arch));
  for (TapInfo& tap : arch.taps_) {
    tap.stage_end = std::find(arch.stages_.begin(), arch.stages_.end(), tap.path) != arch.stages_.end();
  }
  arch.output_ = {.path = "",
                  .kind = arch.root_.children[StepsOf(arch.root_).back().child].kind,
                  .shape = std::move(output.shape),
                  .needs = std::move(output.needs),
                  .multiply_adds = run.multiply_adds()};
  if (arch.dense()) DISTILL_RETURN_IF_ERROR(CheckRange(spec, "num_classes", spec.num_classes, 1, kMaxDenseClasses));
  return arch;
}

StatusOr<Architecture> Architecture::OfArchive(ModelSpec spec, std::vector<TapInfo> taps,
                                               std::vector<StateEntry> state) {
  Architecture arch;
  std::set<std::string_view> paths;
  for (const TapInfo& tap : taps) {
    const auto wrong = [&](std::string_view what) {
      return absl::InvalidArgumentError(StrCat("archive: tap '", tap.path, "' ", what));
    };
    if (!paths.insert(tap.path).second) return wrong("is described twice");
    if (tap.stage_end && tap.shape.size() != 3) return wrong("ends a stage, but is no map [C, H, W]");
    for (uint32_t position : tap.needs) {
      if (position >= state.size()) return wrong("depends on a parameter that does not exist");
    }
  }
  for (TapInfo& tap : taps) {
    if (tap.path.empty()) {
      arch.output_ = std::move(tap);
      continue;
    }
    if (tap.stage_end) arch.stages_.push_back(tap.path);
    arch.taps_.push_back(std::move(tap));
  }
  const TapShape& output = arch.output_.shape;
  if (output.size() != 1 && output.size() != 3) {
    return absl::InvalidArgumentError(StrCat("archive: its output is ",
                                             output.empty() ? "not there" : ShapeText(output),
                                             "; a student answers with [K], or [K, H, W] for every pixel"));
  }
  spec.num_classes = output[0];
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "num_classes", spec.num_classes, 1,
                                     output.size() == 3 ? uint64_t{kMaxDenseClasses} : uint64_t{kMaxClasses}));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "in_channels", spec.in_channels, 1, kMaxChannels));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "image height in pixels", spec.image_height, kMinImage, kMaxImage));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "image width in pixels", spec.image_width, kMinImage, kMaxImage));
  DISTILL_RETURN_IF_ERROR(CheckStatistics(spec, "mean", spec.mean, false));
  DISTILL_RETURN_IF_ERROR(CheckStatistics(spec, "std", spec.std, true));
  arch.spec_ = std::move(spec);
  arch.state_ = std::move(state);
  return arch;
}

std::vector<std::string> Architecture::StageModules(size_t k) const {
  if (k >= stages_.size()) return {};
  return ModulesBetween(k == 0 ? std::string_view() : stages_[k - 1], stages_[k]);
}

std::vector<std::string> Architecture::HeadModules() const {
  return ModulesBetween(stages_.empty() ? std::string_view() : stages_.back(), "");
}

std::vector<std::string> Architecture::ModulesBetween(std::string_view after, std::string_view until) const {
  const std::vector<std::string> all = ModulePaths();  // a module, then what is below it
  std::vector<char> left_out(all.size(), 0);           // leaves
  for (size_t i = 0; i < all.size(); ++i) {
    if (i + 1 < all.size() && IsUnder(all[i + 1], all[i])) continue;
    left_out[i] = !Reaches(all[i], until) || (!after.empty() && Reaches(all[i], after));
  }
  std::vector<std::string> modules;
  for (size_t i = 0; i < all.size(); ++i) {
    if (!modules.empty() && IsUnder(all[i], modules.back())) continue;
    bool whole = true;
    for (size_t j = i; j < all.size() && IsUnder(all[j], all[i]); ++j) whole = whole && !left_out[j];
    if (whole) modules.push_back(all[i]);
  }
  return modules;
}

bool Architecture::Reaches(std::string_view module, std::string_view tap) const {
  const TapInfo* const info = FindTap(tap);
  return info != nullptr && std::any_of(info->needs.begin(), info->needs.end(),
                                        [&](uint32_t position) { return IsUnder(state_[position].name, module); });
}

std::vector<std::string> Architecture::Leaves(std::string_view path) const {
  const std::vector<std::string> all = ModulePaths();
  std::vector<std::string> leaves;
  for (size_t i = 0; i < all.size(); ++i) {
    const bool has_child = i + 1 < all.size() && IsUnder(all[i + 1], all[i]);
    if (IsUnder(all[i], path) && !has_child) leaves.push_back(all[i]);
  }
  return leaves;
}

size_t Architecture::CutIndex(std::string_view path) const {
  size_t index = 0;
  for (const TapInfo& tap : taps_) {
    // A chain ends where its last child does.
    if (tap.is_cut && tap.kind != ModuleKind::kSequential) ++index;
    if (tap.path == path) return tap.is_cut ? index : 0;
  }
  return 0;
}

const TapInfo* Architecture::FindTap(std::string_view path) const {
  if (path.empty()) return &output_;
  for (const TapInfo& tap : taps_) {
    if (tap.path == path) return &tap;
  }
  return nullptr;
}

std::vector<std::string> Architecture::ModulePaths() const {
  std::set<std::string> parents;  // modules above those that own parameters
  for (const StateEntry& entry : state_) {
    if (entry.is_buffer) continue;
    std::string_view path = ParentOf(ParentOf(entry.name));
    for (; !path.empty(); path = ParentOf(path)) parents.emplace(path);
  }
  parents.emplace();  // the root is no module of its own
  std::vector<std::string> paths;
  std::set<std::string> seen;
  const auto add = [&](std::string_view path) {
    if (seen.emplace(path).second) paths.emplace_back(path);
  };
  // Depth first: a module's own parameters come before its children's.
  for (const StateEntry& entry : state_) {
    if (entry.is_buffer) continue;
    for (size_t dot = entry.name.find('.'); dot != std::string::npos; dot = entry.name.find('.', dot + 1)) {
      add(std::string_view(entry.name).substr(0, dot));
    }
    if (parents.contains(std::string(ParentOf(entry.name)))) add(entry.name);
  }
  return paths;
}

uint64_t Architecture::ParameterCount() const {
  uint64_t count = 0;
  for (const StateEntry& entry : state_) {
    if (!entry.is_buffer) count += Elements(entry);
  }
  return count;
}

uint64_t Architecture::ParametersUpTo(const TapInfo& tap) const {
  uint64_t count = 0;
  for (const uint32_t position : tap.needs) count += Elements(state_[position]);
  return count;
}

StatusOr<std::vector<std::string>> ExpandModuleGlobs(const Architecture& arch, const std::vector<std::string>& globs) {
  const std::vector<std::string> paths = arch.ModulePaths();
  std::vector<char> chosen(paths.size(), 0);
  for (const std::string& glob : globs) {
    bool any = false;
    for (size_t i = 0; i < paths.size(); ++i) {
      if (!GlobMatches(glob, paths[i])) continue;
      chosen[i] = 1;
      any = true;
    }
    if (any) continue;
    if (!glob.empty() && arch.FindTap(glob) != nullptr) {
      return absl::InvalidArgumentError(
          StrCat("module '", glob, "' of ", arch.spec().arch, " has no parameters, so it cannot train"));
    }
    return absl::InvalidArgumentError(
        StrCat("'", glob, "' matches no module of ", arch.spec().arch, DidYouMean(glob, paths)));
  }
  std::vector<std::string> expanded;
  for (size_t i = 0; i < paths.size(); ++i) {
    // Pre-order: an ancestor that was chosen is the last one added.
    if (chosen[i] && (expanded.empty() || !IsUnder(paths[i], expanded.back()))) expanded.push_back(paths[i]);
  }
  return expanded;
}

bool IsUnder(std::string_view path, std::string_view module) {
  return path.starts_with(module) && (path.size() == module.size() || module.empty() || path[module.size()] == '.');
}

}  // namespace distill
