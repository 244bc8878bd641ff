"""What the workbook needs of the machine: folders, locks and lines that live."""
