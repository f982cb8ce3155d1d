"""Student initialization by depth and width pruning of the teacher."""
