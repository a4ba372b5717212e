"""Operations on points in space, in plain PyTorch, that data and encoders share; knows neither."""
