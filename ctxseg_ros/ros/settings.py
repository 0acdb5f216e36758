# SPDX-License-Identifier: Apache-2.0
"""The parameters of segment_node: defaults, ranges, descriptions."""

from ctxseg_ros.image.encodings import ENCODINGS
from ctxseg_ros.inference.runtimes import DEVICES
from ctxseg_ros.refinement.refiner import KINDS, NONE
from ctxseg_ros.ros import qos
from ctxseg_ros.ros.camera_input import AUTO
from ctxseg_ros.ros.parameters import Setting, choice, integer, names, number, path, sizes, switch

SETTINGS: dict[str, Setting] = {
    "model": path("segmenter_tiny", "Name of a shipped model, or path of an .onnx file"),
    "device": choice(
        "auto",
        ("auto", *DEVICES),
        "Device that the model runs on. auto: the first that works, in this order; diagnostics "
        "give the reason why no earlier one is used",
    ),
    "input_sizes": sizes(
        "Input sizes HxW of the model, largest first; the node uses the largest that holds "
        "latency_budget_ms. Empty: the model's own size; auto: its own and three smaller ones",
    ),
    "latency_budget_ms": number(
        0.0,
        0.0,
        60000.0,
        "Time from the camera's stamp to the published labels that 95 % of the frames must keep; "
        "0: no budget, the latency is only reported",
    ),
    "max_age_ms": number(
        0.0, 0.0, 60000.0, "Frames older than this are dropped before inference; 0: off"
    ),
    "min_confidence": number(
        0.0,
        0.0,
        1.0,
        "Pixels with a lower confidence become 255, unlabelled (models with labels)",
    ),
    "label_groups": path("", "Path of a YAML file that merges the model's classes; empty: none"),
    "refinement": choice(
        NONE,
        KINDS,
        "Aligns labels with image edges before they are published. crf: a dense CRF; merge: the "
        "CRF, then a single label for each region. Slow; needs ctxseg_ros[refine] (models with "
        "labels)",
    ),
    "merge_level": number(
        0.5,
        0.0,
        1.0,
        "refinement: merge joins regions across boundaries up to this strength; 0 joins none, "
        "1 joins all",
    ),
    "attention_mass": number(
        0.6, 0.01, 1.0, "Share of the attention that ~/attention_mask contains (attention models)"
    ),
    "attention_head": integer(
        -1,
        -1,
        63,
        "Head in ~/attention and ~/attention_mask; -1: the mean of all heads (attention models)",
    ),
    "overlay_alpha": number(0.5, 0.0, 1.0, "Opacity of the colours in ~/overlay"),
    "cameras": names(
        "Namespaces of several cameras that share the model, such as [front, left]: frames come "
        "from front/image, labels go to ~/front/labels. Empty: one camera, on `image`",
        fixed=True,
    ),
    "image_transport": choice(
        "raw",
        ("raw", "compressed"),
        "raw: Image on `image`; compressed: CompressedImage (JPEG or PNG) on `image/compressed`",
        fixed=True,
    ),
    "input_reliability": choice(
        "auto", qos.RELIABILITIES, "QoS to request; auto: the one that the camera publishes with"
    ),
    "input_encoding": choice(
        AUTO,
        (AUTO, *ENCODINGS),
        "Pixel format of frames whose encoding does not state it (8UC3, 8UC1, 16UC1, empty) or is "
        "unknown; auto: such frames are rejected",
    ),
    "input_bits": integer(
        16,
        8,
        16,
        "Bits actually used in 16-bit frames, such as 12 for a 12-bit sensor, whose frames are "
        "nearly black otherwise",
    ),
    "always_infer": switch(
        False,
        "Run the model on every frame even while no output has a subscriber, so that diagnostics "
        "always have latencies",
    ),
    "autostart": switch(
        True,
        "Configure and activate at startup; false if a lifecycle manager does it",
        read_only=True,
    ),
}
