"""What is known: the methods, the models that open, and this machine. Asked for, and none of it written twice."""
