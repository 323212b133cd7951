"""What the tests with other people's software share; the software's own small programs are in the folders."""
