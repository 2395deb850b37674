// Which images of a folder are test images, where the data set has none of its own (DataPlan.split).
#ifndef DISTILL_STUDENT_WORKER_DATA_TEST_IMAGES_H_
#define DISTILL_STUDENT_WORKER_DATA_TEST_IMAGES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/plan/plan.h"

namespace distill {

// By image: true, a test image. Images are taken in the order of SHA-256("SEED NAME"), names being those in `names`: as
// many as round(plan.test * n) of all n ("image"), or of those of each label ("class"); but at least one, and one fewer
// than n, where n >= 2, and none of one. A pure function of the seed, the names and labels, whatever their order.
// Images that come to a set hardly change the side of the others. Stateless; any thread. REQUIRES: as many labels as
// names.
std::vector<bool> ChooseTestImages(const SplitPlan& plan, const std::vector<std::string>& names,
                                   const std::vector<int64_t>& labels);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_TEST_IMAGES_H_
