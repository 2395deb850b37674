#include <algorithm>
#include <functional>

#include "common/score/score.h"
#include "common/str_cat.h"
#include "coordinator/jobfile/draft_reader.h"
#include "coordinator/jobfile/section_reader.h"

namespace distill {
namespace {

constexpr size_t kMaxMultipliers = 64;
constexpr NumberRange kPositive{.minimum = 0, .minimum_exclusive = true};
constexpr NumberRange kShareBelowOne{.minimum = 0, .maximum = 1, .maximum_exclusive = true};
constexpr NumberRange kInside{.minimum = 0, .maximum = 1, .minimum_exclusive = true, .maximum_exclusive = true};
constexpr NumberRange kAtLeastOne{.minimum = 1, .maximum = 1e12};

// A key that only some types read is a mistake beside another type.
void OnlyFor(const SectionReader& section, std::string_view key, const std::vector<std::string>& types,
             const std::string& type) {
  if (!section.Has(key) || std::find(types.begin(), types.end(), type) != types.end()) return;
  std::string list;
  for (size_t i = 0; i < types.size(); ++i) {
    StrAppend(&list, i == 0 ? "" : i + 1 == types.size() ? " and " : ", ", types[i]);
  }
  section.Problem(key, StrCat("belongs to ", list, ", not to ", type));
}

void ReadMultipliers(const SectionReader& section, Problems* problems, OptimizerDraft* out) {
  const YamlNodePtr list = section.Find("lr_mult");
  if (list == nullptr) return;
  if (list->kind != YamlNode::Kind::kSequence || list->items.size() > kMaxMultipliers) {
    section.Problem("lr_mult",
                    list->kind == YamlNode::Kind::kSequence
                        ? StrCat("expected at most ", kMaxMultipliers, " entries, got ", list->items.size())
                        : StrCat("expected a list such as [{modules: [fc], factor: 10}], got ", DescribeValue(*list)));
    return;
  }
  out->multipliers.clear();
  for (size_t i = 0; i < list->items.size(); ++i) {
    LrMultDraft mult;
    mult.path = StrCat(section.Name("lr_mult"), "[", i, "]");
    const SectionReader entry(list->items[i], mult.path, JobSectionKeys("optimizer.lr_mult[]"), problems);
    mult.mark = entry.Mark("modules");
    std::vector<YamlMark> marks;
    const bool named = entry.present() && entry.Require("modules") && entry.Texts("modules", &mult.globs, &marks);
    if (named && mult.globs.empty()) entry.Problem("modules", "names no module");
    if (entry.present() && entry.Require("factor"))
      entry.Number("factor", {.minimum = 0, .maximum = 1e6}, &mult.factor);
    if (!mult.globs.empty()) out->multipliers.push_back(std::move(mult));
  }
}

}  // namespace

void ReadOptimizer(const YamlNodePtr& node, const std::string& path, Problems* problems, OptimizerDraft* out) {
  const SectionReader section(node, path, JobSectionKeys("optimizer"), problems);
  const std::string inherited = out->type;
  section.Choice("type", {"sgd", "adam", "adamw", "lamb"}, &out->type);
  if (out->type != inherited) out->eps = out->type == "lamb" ? 1e-6 : 1e-8;  // their papers'
  section.Number("lr", kPositive, &out->lr);
  section.Number("momentum", kShareBelowOne, &out->momentum);
  section.Number("weight_decay", {.minimum = 0}, &out->weight_decay);
  section.Flag("nesterov", &out->nesterov);
  section.Number("clip_norm", {.minimum = 0}, &out->clip_norm);
  std::vector<double> betas;
  if (section.Numbers("betas", kShareBelowOne, &betas)) {
    if (betas.size() == 2) {
      out->beta1 = betas[0];
      out->beta2 = betas[1];
    } else {
      section.Problem("betas", StrCat("expected two numbers, such as [0.9, 0.999], got ", betas.size()));
    }
  }
  section.Number("eps", {.minimum = 0, .maximum = 1, .minimum_exclusive = true}, &out->eps);
  section.Flag("decay_norms_and_biases", &out->decay_norms_and_biases);
  section.Number("ema_decay", kShareBelowOne, &out->ema_decay);
  if (!section.present()) return;
  ReadMultipliers(section, problems, out);
  if (out->nesterov && out->type == "sgd" && out->momentum == 0) {
    section.Problem("nesterov", "needs a momentum above 0");
  }
  if (out->nesterov && out->type != "sgd") section.Problem("nesterov", StrCat("belongs to sgd, not to ", out->type));
  OnlyFor(section, "momentum", {"sgd"}, out->type);
  for (const std::string_view key : {"betas", "eps"}) OnlyFor(section, key, {"adam", "adamw", "lamb"}, out->type);
}

void ReadSelectBy(const SectionReader& section, const std::string& select, uint32_t patience, std::string* out,
                  YamlMark* mark) {
  section.Choice("select_by", {"objective", kTop1, kTop5, kMeanIou, kPixelAccuracy}, out);
  if (section.Has("select_by") && select == "last" && patience == 0) {
    section.Problem("select_by", "says what select: best and patience go by; give one of them");
  }
  *mark = section.Mark("select_by");
}

void ReadSchedule(const YamlNodePtr& node, const std::string& path, Problems* problems, SchedulePlan* out) {
  const SectionReader section(node, path, JobSectionKeys("schedule"), problems);
  section.Choice("type", {"constant", "cosine", "poly", "step", "one_cycle"}, &out->type);
  section.Number("warmup", kShareBelowOne, &out->warmup);
  section.Number("gamma", {.minimum = 0, .maximum = 1, .minimum_exclusive = true}, &out->gamma);
  section.Number("power", {.minimum = 0, .maximum = 100, .minimum_exclusive = true}, &out->power);
  section.Number("min_factor", kShareBelowOne, &out->min_factor);
  section.Number("pct_start", kInside, &out->pct_start);
  section.Number("div_factor", kAtLeastOne, &out->div_factor);
  section.Number("final_div_factor", kAtLeastOne, &out->final_div_factor);
  if (section.Numbers("milestones", kInside, &out->milestones) &&
      std::adjacent_find(out->milestones.begin(), out->milestones.end(), std::greater_equal<>()) !=
          out->milestones.end()) {
    section.Problem("milestones", "must ascend");
  }
  if (!section.present()) return;
  if (out->type == "step" && out->milestones.empty()) {
    section.Problem("type", "'step' needs milestones, for example [0.5, 0.75]");
  }
  if (out->type != "step" && section.Has("milestones")) {
    section.Problem("milestones", StrCat("belong to type 'step', not to '", out->type, "'"));
  }
  if (out->type != "step") out->milestones.clear();
  OnlyFor(section, "gamma", {"step"}, out->type);
  OnlyFor(section, "power", {"poly"}, out->type);
  OnlyFor(section, "min_factor", {"cosine", "poly"}, out->type);
  for (const std::string_view key : {"pct_start", "div_factor", "final_div_factor"}) {
    OnlyFor(section, key, {"one_cycle"}, out->type);
  }
  if (out->type != "one_cycle") return;
  if (section.Has("warmup") && out->warmup > 0) {
    section.Problem("warmup", "one_cycle rises by itself, over pct_start of the steps; leave this out");
  }
  out->warmup = 0;
}

}  // namespace distill
