// What a person sees while watching a job: a display of a few lines redrawn in place on a terminal, plain lines
// elsewhere.
//
// Everything here is a function of the job's newest state and the time; printing is the caller's (watch.h). Times are
// seconds since 1970. All text is printable (text.h).
#ifndef DISTILL_COORDINATOR_CLI_PROGRESS_VIEW_H_
#define DISTILL_COORDINATOR_CLI_PROGRESS_VIEW_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/cli/text.h"
#include "distill/v1/job.pb.h"

namespace distill::cli {

// A bar of `width` columns (at least 1) that is filled by `share` in [0, 1].
std::string RenderBar(double share, int width, bool utf8);

// The live display: a head line, the reason if there is one, one line a stage, and for a running job the bar of the
// current stage with percentage and ETA, then losses, speed and accuracies. `notice` (may be empty) is a last line, for
// connection troubles. At most options.height - 1 lines (at least 8) of at most options.width columns: when there are
// more stages than room, those far from the current one are folded into a line that counts them.
std::vector<std::string> RenderProgress(const v1::Job& job, double now, std::string_view notice,
                                        const TextOptions& options);

// One line: "[3m12s] stage 3/4 whole: step 412/1050 (39%), loss 0.5432 (kd 1.2), 2431 img/s, ..., training, eta 40s
// (job 2m10s)".
std::string PlainProgressLine(const v1::Job& job, double now);

// Chooses the plain lines: every change of state, every stage that starts or is committed, every restart at once;
// progress in between at most once per interval. The end itself is left to RenderOutcome. Owned by one thread.
class PlainProgress {
 public:
  explicit PlainProgress(double interval_seconds) : interval_seconds_(interval_seconds) {}
  // The lines to print now that `job` is the newest state; also called with an unchanged job as time passes.
  std::vector<std::string> Update(const v1::Job& job, double now);

 private:
  const double interval_seconds_;
  std::optional<v1::Job> last_;  // the state seen by the call before
  std::string last_line_;        // newest progress line, without its time, to leave out repetitions
  double last_line_time_ = 0;
};

// How the job ended, for the end of a watch: state, duration, accuracies and the files. Several lines, each with its
// newline.
std::string RenderOutcome(const v1::Job& job, const TextOptions& options);

// What went otherwise than the job's owner may think, below the outcome: the warnings among `events`, each text once,
// the newest kShownWarnings of them, and the line that shows all. Empty where there is none.
inline constexpr size_t kShownWarnings = 5;
std::string RenderWarnings(const std::vector<v1::JobEvent>& events, std::string_view logs_command,
                           const TextOptions& options);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_PROGRESS_VIEW_H_
