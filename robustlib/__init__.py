"""robustlib: common corruptions, adversarial attacks, M-TLAT and the overlapping score."""
