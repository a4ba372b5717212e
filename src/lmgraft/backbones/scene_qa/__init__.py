"""Questions about rooms, answered from their points: PointNet++ and VoteNet, and fusion with texts as MCAN has it."""
