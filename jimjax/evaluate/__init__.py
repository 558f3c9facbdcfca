"""Scores of classes, poses and masks against a known truth; numpy only, float64."""

from jimjax.evaluate.clustering import (
    balanced_accuracy,
    clustering_accuracy,
    contingency_table,
    match_labels,
    score_clustering,
)
from jimjax.evaluate.pose import (
    PoseErrors,
    relative_pose_errors,
    rotation_error_degrees,
    sample_pairs,
    score_poses,
)
from jimjax.evaluate.segmentation import dice, iou, score_segmentation
from jimjax.evaluate.summary import evaluate

__all__ = [
    "PoseErrors",
    "balanced_accuracy",
    "clustering_accuracy",
    "contingency_table",
    "dice",
    "evaluate",
    "iou",
    "match_labels",
    "relative_pose_errors",
    "rotation_error_degrees",
    "sample_pairs",
    "score_clustering",
    "score_poses",
    "score_segmentation",
]
