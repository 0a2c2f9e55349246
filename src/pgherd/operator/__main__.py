"""``python -m pgherd.operator``"""

from pgherd.operator.main import main

main()
