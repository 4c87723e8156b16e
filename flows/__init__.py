"""One Prefect flow a stage: reads its inputs, calls merge3, writes its folder."""
