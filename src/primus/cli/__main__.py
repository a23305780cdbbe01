from primus.cli.main import main

main()
