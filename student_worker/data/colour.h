// Colours of pictures changed in place, with the arithmetic of torchvision.transforms.v2.functional on uint8 tensors.
//
// Pictures of one channel are grey: brightness, contrast and blur act on them, the others leave them as they are. Label
// maps stay. All are stateless; any thread.
#ifndef DISTILL_STUDENT_WORKER_DATA_COLOUR_H_
#define DISTILL_STUDENT_WORKER_DATA_COLOUR_H_

#include "student_worker/data/picture.h"

namespace distill {

// v * factor, cut off at 255. factor >= 0, as in the next two.
void AdjustBrightness(double factor, Picture* picture);
// The distance to the mean grey value times `factor`.
void AdjustContrast(double factor, Picture* picture);
// The distance to the picture's own grey times `factor`.
void AdjustSaturation(double factor, Picture* picture);
// The hue turned by `share` of the circle, in [-0.5, 0.5].
void AdjustHue(double share, Picture* picture);
// 0.2989 R + 0.587 G + 0.114 B in all three channels.
void MakeGray(Picture* picture);
// A Gaussian of `kernel` x `kernel` pixels, mirrored at the edges (without the edge itself). `kernel` is odd; where the
// picture has too few pixels to mirror, the largest odd one that it allows is taken. sigma > 0, in pixels.
void GaussianBlur(uint32_t kernel, double sigma, Picture* picture);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_COLOUR_H_
