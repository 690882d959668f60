"""The peers' environment: torchvision's operators are declared by hand; its binary does not load beside a CPU torch."""

import torch

# Importing torchvision registers fake kernels for these two, which fails where the binary that defines them did not load.
_LIBRARY = torch.library.Library("torchvision", "DEF")
_LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
