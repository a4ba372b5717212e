"""Operations on points and poses in space, in plain PyTorch, that data, encoders and pictures share; knows none."""
