"""What the model YAMLs of ultralytics name and RepYOLO does not have, with the reason, which messages give."""

from __future__ import annotations

OURS = "heads here detect, segment and classify"
TEXT = "it reads the embedding of a text, and networks here take pictures alone"
WORDS = {  # of the parsers of ultralytics and, the two of I..., YOLOv7, whose modules have no word here
    "C2fAttn": TEXT,
    "ImagePoolingAttn": TEXT,
    "WorldDetect": TEXT,
    "YOLOEDetect": TEXT,
    "YOLOESegment": TEXT,
    "YOLOESegment26": TEXT,
    "LRPCHead": "it is a part of YOLOE's heads, which read the embedding of a text",
    "RTDETRDecoder": "it learns by a matching loss of its own, for which there is no trainer here",
    "Depth": f"it gives the depth of every pixel, and {OURS}",
    "OBB": f"it finds rotated boxes, and {OURS}",
    "OBB26": f"it finds rotated boxes, and {OURS}",
    "Pose": f"it finds keypoints, and {OURS}",
    "Pose26": f"it finds keypoints, and {OURS}",
    "SemanticSegment": f"it gives the class of every pixel, and {OURS}",
    "IDetect": "write Detect, which it is after fusing its implicit channels, as utils.convert does with a checkpoint",
    "IAuxDetect": "write Detect with the maps of the deployed head, which are the first half of its maps",
    "Conv2": "write RepConv, which is a convolution with a 1x1 beside it as well",
    "RepVGGDW": "it stands inside of C2fCIB with lk: true; write RepConv for branches of your own",
}
KEYS = {  # of ultralytics' YAMLs
    "kpt_shape": f"it is for heads that find keypoints, and {OURS}",
    "text_model": f"it is for heads that read a text, and {OURS}",
}
