// Scores to and from proto/distill/v1/job.proto.
#ifndef DISTILL_COMMON_SCORE_SCORE_CODEC_H_
#define DISTILL_COMMON_SCORE_SCORE_CODEC_H_

#include "common/score/score.h"

namespace distill {

namespace v1 {
class ClassResults;
class Score;
}  // namespace v1

// Replace what the messages hold. Score's message has the metrics alone; results by class have one of their own.
void ToProto(const Score& score, v1::Score* proto);
void ToProto(const ClassResults& results, v1::ClassResults* proto);
Score FromProto(const v1::Score& proto);
// Vectors whose lengths do not fit each other come back empty.
ClassResults FromProto(const v1::ClassResults& proto);

}  // namespace distill

#endif  // DISTILL_COMMON_SCORE_SCORE_CODEC_H_
