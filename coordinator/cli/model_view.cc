#include "coordinator/cli/model_view.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_join.h"
#include "common/plan/plan_codec.h"
#include "common/str_cat.h"
#include "common/zoo/architecture.h"
#include "coordinator/cli/plan_view.h"
#include "coordinator/cli/table.h"
#include "coordinator/cli/units.h"

namespace distill::cli {

std::string RenderModel(const Architecture& network, const TextOptions& options) {
  v1::ModelSpec spec;
  ToProto(network.spec(), &spec);
  const uint64_t parameters = network.ParameterCount();
  const TapInfo& output = *network.FindTap("");
  const std::string head = StrCat(Printable(ModelText(spec)), "\n\nparameters     ", FormatCount(parameters), " (",
                                  FormatBytes(4 * parameters), " in float32)\nmultiply-adds  ",
                                  FormatCount(output.multiply_adds), " an image\n\n");
  Table table({Left("UP TO"), Right("SHAPE"), Right("PARAMETERS"), Right("MULTIPLY-ADDS")});
  const auto add = [&](const std::string& name, const TapInfo& tap) {
    table.AddRow({{name},
                  {absl::StrJoin(tap.shape, "x")},
                  {FormatCount(network.ParametersUpTo(tap))},
                  {FormatCount(tap.multiply_adds)}});
  };
  for (const std::string& stage : network.stages()) add(stage, *network.FindTap(stage));
  add("(output)", output);
  return head + table.Render(options);
}

std::string ModelJson(const Architecture& network) {
  using nlohmann::ordered_json;
  const ModelSpec& spec = network.spec();
  ordered_json stages = ordered_json::array();
  for (const std::string& stage : network.stages()) {
    const TapInfo& tap = *network.FindTap(stage);
    stages.push_back(ordered_json{{"tap", stage},
                                  {"shape", tap.shape},
                                  {"parameters", network.ParametersUpTo(tap)},
                                  {"multiply_adds", tap.multiply_adds}});
  }
  const ordered_json model{{"arch", spec.arch},
                           {"width", spec.width},
                           {"num_classes", spec.num_classes},
                           {"in_channels", spec.in_channels},
                           {"image", {spec.image_height, spec.image_width}},
                           {"parameters", network.ParameterCount()},
                           {"multiply_adds", network.FindTap("")->multiply_adds},
                           {"stages", stages}};
  return model.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace distill::cli
