"""Words and near copies, in any script."""
