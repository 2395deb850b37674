#include "coordinator/cli/fleet_view.h"

#include "absl/strings/str_join.h"
#include "common/str_cat.h"
#include "coordinator/cli/plan_view.h"
#include "coordinator/cli/table.h"
#include "coordinator/cli/units.h"

namespace distill::cli {
namespace {

Style WorkerStyle(const std::string& state) {
  if (state == "lost" || state == "stuck" || state == "cordoned") return Style::kRed;
  if (state == "draining" || state == "stopped") return Style::kYellow;
  if (state == "serving" || state == "training") return Style::kCyan;
  return Style::kNone;
}

}  // namespace

std::string RenderFleet(const v1::GetFleetResponse& fleet, const TextOptions& options) {
  std::string out;
  if (fleet.workers().empty()) {
    out = "no workers; start distill-teacher and distill-student with --coordinator set to this coordinator\n";
  } else {
    Table workers({Left("WORKER"), Left("KIND"), Left("STATE"), Left("DEVICE"), Left("ADDRESS"), Right("HEARTBEAT"),
                   Left("JOBS"), Left("VERSION")});
    Table models({Left("MODEL"), Left("TEACHER"), Left("NETWORK"), Right("PARAMETERS"), Right("SIZE"), Left("DIGEST")});
    Table archives(
        {Left("ARCHIVE"), Left("STUDENT"), Left("NETWORK"), Right("PARAMETERS"), Right("SIZE"), Left("DIGEST")});
    for (const v1::WorkerInfo& worker : fleet.workers()) {
      workers.AddRow({{worker.id(), Style::kBold},
                      {worker.kind()},
                      {worker.state(), WorkerStyle(worker.state())},
                      {worker.device()},
                      {worker.address()},
                      {StrCat(FormatDuration(worker.heartbeat_age()), " ago")},
                      {worker.jobs().empty() ? "-" : absl::StrJoin(worker.jobs(), ", ")},
                      {worker.version()}});
      // What a worker that is going or gone serves is nothing that a job can name.
      const bool offers = worker.state() != "draining" && worker.state() != "stopped" && worker.state() != "lost";
      for (const v1::ServedModel& model : worker.models()) {
        if (!offers) break;
        Table& table = worker.kind() == "student" ? archives : models;
        table.AddRow({{model.name(), Style::kBold},
                      {worker.id()},
                      {ModelText(model.spec())},
                      {model.parameters() == 0 ? "-" : FormatCount(model.parameters())},  // 0: of an archive, unknown
                      {FormatBytes(model.bytes())},
                      {model.digest().substr(0, 12)}});
      }
    }
    out = workers.Render(options);
    for (const v1::WorkerInfo& worker : fleet.workers()) {
      if (worker.reason().empty()) continue;
      StrAppend(&out, "\n", Printable(worker.id()), " is ", Printable(worker.state()), ": ", Printable(worker.reason()),
                "\n");
    }
    if (!models.empty()) StrAppend(&out, "\n", models.Render(options));
    if (!archives.empty()) StrAppend(&out, "\n", archives.Render(options));
  }
  StrAppend(&out, "\ncoordinator ", Printable(fleet.coordinator_version()), ", start number ",
            fleet.coordinator_epoch(), "\n");
  return out;
}

std::string RenderTaps(const v1::ListTapsResponse& taps, const TextOptions& options) {
  std::string out;
  if (!taps.spec().arch().empty()) out = StrCat(Printable(ModelText(taps.spec())), "\n\n");
  Table table({Left("TAP"), Left("TYPE"), Right("SHAPE"), Right("VALUES"), Left("")});
  for (const v1::TapInfo& tap : taps.taps()) {
    uint64_t values = 1;
    for (const uint32_t extent : tap.shape()) values *= extent;
    table.AddRow({{tap.path().empty() ? "(output)" : tap.path(), tap.stage_end() ? Style::kBold : Style::kNone},
                  {tap.type()},
                  {FormatShape(tap.shape())},
                  {tap.shape().empty() ? "-" : FormatCount(values)},
                  {tap.stage_end() ? "end of stage" : "", Style::kDim}});
  }
  return out + table.Render(options);
}

}  // namespace distill::cli
