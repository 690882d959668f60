"""The classifier and where classifiers come from."""

from heatproof.models.classifier import Classifier, Preprocessing, as_classifier
from heatproof.models.targets import Targets

__all__ = ["Classifier", "Preprocessing", "Targets", "as_classifier"]
