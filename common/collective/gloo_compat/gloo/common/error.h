// Part of gloo_compat (see README.md there): torch's ProcessGroupGloo.hpp includes this header and uses nothing of it.
#pragma once
