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
    "device": choice("auto", ("auto", *DEVICES), "Where the model runs"),
    "input_sizes": sizes(
        "Sizes at which the model may run, largest first; the largest that holds "
        "latency_budget_ms does. auto: the model's own and three smaller ones; empty: its own",
    ),
    "latency_budget_ms": number(
        0.0, 0.0, 60000.0, "Camera stamp to published labels, 95th percentile; 0: only report it"
    ),
    "max_age_ms": number(
        0.0, 0.0, 60000.0, "An older frame is dropped before inference; 0: none is"
    ),
    "min_confidence": number(
        0.0,
        0.0,
        1.0,
        "Pixels whose class is less probable become 255, unlabelled (models with labels)",
    ),
    "label_groups": path("", "Path of a YAML that regroups the model's classes; empty: none"),
    "refinement": choice(
        NONE,
        KINDS,
        "Aligns labels with the image's edges before they are published. crf: a dense CRF; merge: "
        "the CRF, then one label for each region. Needs ctxseg_ros[refine]",
    ),
    "merge_level": number(
        0.5, 0.0, 1.0, "Boundaries up to this strength do not part regions (refinement: merge)"
    ),
    "attention_mass": number(
        0.6, 0.01, 1.0, "Share of the attention that ~/attention_mask holds (attention models)"
    ),
    "attention_head": integer(
        -1, -1, 63, "Head in ~/attention and its mask; -1: mean of all (attention models)"
    ),
    "overlay_alpha": number(0.5, 0.0, 1.0, "Opacity of the colours in ~/overlay"),
    "cameras": names(
        "Namespaces of cameras that share the model, as in [front, left]: their frames come from "
        "front/image, their labels go to ~/front/labels. Empty: one camera, on `image`",
        fixed=True,
    ),
    "image_transport": choice(
        "raw",
        ("raw", "compressed"),
        "raw: Image on `image`; compressed: CompressedImage (JPEG, PNG) on `image/compressed`",
        fixed=True,
    ),
    "input_reliability": choice(
        "auto", qos.RELIABILITIES, "QoS asked for; auto: what the publishers of `image` offer"
    ),
    "input_encoding": choice(
        AUTO,
        (AUTO, *ENCODINGS),
        "What the pixels are of frames whose own encoding does not say it (8UC1, 8UC3, 16UC1 and "
        "the like), is empty or is not known; auto: such frames are refused",
    ),
    "input_bits": integer(
        16,
        8,
        16,
        "How many bits of 16-bit frames the camera uses; fewer than 16 brighten frames whose upper "
        "bits are empty",
    ),
    "autostart": switch(
        True,
        "Configure and activate at the start; false where a lifecycle manager does it",
        read_only=True,
    ),
}
