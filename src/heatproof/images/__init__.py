"""Files, geometry and regions: from what lies on disk to arrays and back. No model is known here."""
